-- The sets of equal timestamps, their neighbours, and the set that follows each. Duplicates count
-- once in "size". Reads moves.
SELECT
  user_no,
  timestamp,
  size,
  events,
  LEAD(timestamp) OVER by_time AS next_timestamp,
  LEAD(size) OVER by_time AS next_size,
  LEAD(events) OVER by_time AS next_events
FROM (
  SELECT user_no, timestamp, COUNT(*) AS size, CAST(SUM(times) AS BIGINT) AS events
  FROM moves
  WHERE user_no IS NOT NULL
  GROUP BY user_no, timestamp
)
WINDOW by_time AS (PARTITION BY user_no ORDER BY timestamp)
