-- What names no item of the catalogue: how many interactions each has. Reads events.
SELECT item_id, COUNT(*) AS events
FROM events
WHERE place IS NULL
GROUP BY item_id
