-- The impressions of the catalogue's items. Reads shown_by_item (item_id, events), items.
SELECT s.item_id, s.events AS impressions
FROM shown_by_item s
JOIN items i ON s.item_id = i.item_id
