-- What names no item of the catalogue: items, rows, and one of them.
-- Reads {counted} (item_id, events), items.
SELECT
  COUNT(*) AS items,
  CAST(COALESCE(SUM(events), 0) AS BIGINT) AS events,
  MIN(c.item_id) AS example
FROM {counted} c
LEFT JOIN items i ON c.item_id = i.item_id
WHERE i.item_id IS NULL
