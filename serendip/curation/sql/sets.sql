-- The sets of equal timestamps, their neighbours, and the set that follows each: a next user's
-- first set lies behind every session gap. Duplicates count once in "size". Reads moves.
SELECT
  bucket,
  moment,
  size,
  events,
  LEAD(moment) OVER by_time AS next_moment,
  LEAD(size) OVER by_time AS next_size,
  LEAD(events) OVER by_time AS next_events
FROM (
  SELECT bucket, moment, COUNT(*) AS size, CAST(SUM(times) AS BIGINT) AS events
  FROM moves
  WHERE moment IS NOT NULL
  GROUP BY bucket, moment
)
WINDOW by_time AS (PARTITION BY bucket ORDER BY moment)
