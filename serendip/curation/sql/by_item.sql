-- How many interactions each item has, duplicates and items that are not in the catalogue
-- included. Reads interactions.
SELECT item_id, COUNT(*) AS events
FROM interactions
GROUP BY item_id
