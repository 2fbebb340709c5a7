-- Each interaction and the user's next, summed up by what the two make: a pair whose clusters are
-- 'similar', 'serendipitous' or 'other', or 'none': a session's end, the same item again, or a set
-- of equal timestamps, in which no one is next. Of serendipitous pairs, one row for each
-- (v, C(n)); of the others, one row a kind.
-- Interactions in a set of equal timestamps, or next to one, stand by themselves: "user_no" is
-- not null for them alone, and "times" counts those that are the same in all columns.
-- The window is ordered by time alone: what it says of interactions that tie is not used.
-- Satisfaction is an integer in millionths, so that sums are exact and no engine's order of
-- summation shows.
-- Reads interactions, users (user_id, user_no), items (item_id, item_no, node_id at the planning
-- level, base_id at level - level_gap).
SELECT
  kind,
  CASE WHEN by_a_tie THEN user_no END AS user_no,
  CASE WHEN by_a_tie THEN timestamp END AS timestamp,
  CASE WHEN by_a_tie THEN satisfaction_q END AS satisfaction_q,
  CASE WHEN by_a_tie OR kind = 'serendipitous' THEN item_no END AS item_no,
  CASE WHEN kind = 'serendipitous' THEN next_node_id END AS next_node_id,
  COUNT(*) AS times,
  CAST(SUM(next_satisfaction_q) AS BIGINT) AS next_satisfaction_q
FROM (
  SELECT
    user_no,
    timestamp,
    item_no,
    satisfaction_q,
    next_node_id,
    next_satisfaction_q,
    COALESCE(
      timestamp = next_timestamp OR timestamp = last_timestamp
        OR next_timestamp = timestamp_after_next OR last_timestamp = timestamp_before_last,
      FALSE
    ) AS by_a_tie,
    CASE
      WHEN timestamp = next_timestamp OR timestamp = last_timestamp
        OR next_timestamp = timestamp_after_next
        THEN 'none'
      WHEN next_timestamp IS NULL OR next_timestamp - timestamp > {session_gap_ms}
        OR item_no = next_item_no
        THEN 'none'
      WHEN node_id = next_node_id THEN 'similar'
      WHEN base_id = next_base_id THEN 'serendipitous'
      ELSE 'other'
    END AS kind
  FROM (
    SELECT
      user_no,
      timestamp,
      item_no,
      node_id,
      base_id,
      satisfaction_q,
      LAG(timestamp, 2) OVER by_time AS timestamp_before_last,
      LAG(timestamp) OVER by_time AS last_timestamp,
      LEAD(timestamp) OVER by_time AS next_timestamp,
      LEAD(timestamp, 2) OVER by_time AS timestamp_after_next,
      LEAD(item_no) OVER by_time AS next_item_no,
      LEAD(node_id) OVER by_time AS next_node_id,
      LEAD(base_id) OVER by_time AS next_base_id,
      LEAD(satisfaction_q) OVER by_time AS next_satisfaction_q
    FROM (
      SELECT
        users.user_no,
        interactions.timestamp,
        items.item_no,
        items.node_id,
        items.base_id,
        CAST(FLOOR(CAST(interactions.satisfaction AS DOUBLE) * CAST(1000000 AS DOUBLE)
          + CAST(0.5 AS DOUBLE)) AS INT) AS satisfaction_q
      FROM interactions
      JOIN items ON interactions.item_id = items.item_id
      JOIN users ON interactions.user_id = users.user_id
    )
    WINDOW by_time AS (PARTITION BY user_no ORDER BY timestamp)
  )
)
GROUP BY 1, 2, 3, 4, 5, 6
