-- What names no item of the catalogue: how many impressions each has.
-- Reads shown_by_item (item_id, events), items.
SELECT s.item_id, s.events
FROM shown_by_item s
LEFT JOIN items i ON s.item_id = i.item_id
WHERE i.item_id IS NULL
