-- Events with quantised satisfaction, and the set that each lies in: equal timestamps of one
-- user have no order, so they form one set.
-- Reads interactions. Satisfaction is an integer in millionths, so that sums are exact and no
-- engine's order of summation shows.
SELECT
  user_id,
  item_id,
  timestamp,
  CAST(FLOOR(CAST(satisfaction AS DOUBLE) * CAST(1000000 AS DOUBLE) + CAST(0.5 AS DOUBLE)) AS BIGINT)
    AS satisfaction_q,
  DENSE_RANK() OVER (PARTITION BY user_id ORDER BY timestamp) AS set_no,
  COUNT(*) OVER (PARTITION BY user_id, timestamp) AS set_size
FROM interactions
