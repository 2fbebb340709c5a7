-- How many interactions each item of the catalogue has, duplicates included. Reads events.
SELECT CAST(place & {item_mask} AS INT) AS item_no, COUNT(*) AS events
FROM events
WHERE place IS NOT NULL
GROUP BY 1
