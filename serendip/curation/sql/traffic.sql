-- Without impressions, interactions stand in: those of the catalogue's items, less duplicates.
-- Reads by_item (item_no, events), items, duplicates (item_no, events).
SELECT i.item_id, b.events - COALESCE(d.events, 0) AS impressions
FROM by_item b
JOIN items i ON b.item_no = i.item_no
LEFT JOIN duplicates d ON b.item_no = d.item_no
