-- How many impressions each item has, items that are not in the catalogue included. One place of
-- one request shows an item once: what repeats it is a duplicate. Reads impressions.
SELECT item_id, COUNT(*) AS events
FROM (SELECT DISTINCT request_id, item_id, position FROM impressions)
GROUP BY item_id
