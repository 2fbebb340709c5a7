-- Each interaction in few and narrow columns: what a sort, a window and a sum cost hangs on them.
--   bucket: of the user, INT in [0, 4096).
--   moment: number * 2^43 + timestamp. In a bucket, it is sorted by user, then by time, and equal
--     where both are. Timestamps are less than 2^42: between two users there are more than 2^42 ms.
--     A bucket's millionth user (2^20) is the last that fits.
--   place: base_id, node_id, item_no from the highest bits to the lowest; null where the item is
--     not in the catalogue. Only there, item_id is not null.
--   satisfaction_q: in millionths, so that sums are exact and no engine's order of summation shows.
-- Reads interactions, users (user_id, bucket, number), items (item_id, item_no, node_id at the
-- planning level, base_id at level - level_gap; INT, none below 0).
SELECT
  users.bucket,
  users.number * 8796093022208 + interactions.timestamp AS moment,
  (CAST(items.base_id AS BIGINT) << {base_shift}) + (CAST(items.node_id AS BIGINT) << {item_bits})
    + items.item_no AS place,
  CAST(FLOOR(CAST(interactions.satisfaction AS DOUBLE) * CAST(1000000 AS DOUBLE)
    + CAST(0.5 AS DOUBLE)) AS INT) AS satisfaction_q,
  CASE WHEN items.item_no IS NULL THEN interactions.item_id END AS item_id
FROM interactions
JOIN users ON interactions.user_id = users.user_id
LEFT JOIN items ON interactions.item_id = items.item_id
