-- How often an item's interactions repeat one that is the same in all columns. Reads moves.
SELECT own_item_no AS item_no, CAST(SUM(times - 1) AS BIGINT) AS events
FROM moves
WHERE moment IS NOT NULL
GROUP BY own_item_no
