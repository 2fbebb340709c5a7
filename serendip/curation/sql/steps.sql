-- Consecutive pairs (v, n) within the session gap: from each item of a set to each of the next
-- set's, weighted to sum to one a set pair; none within a set.
-- Reads events, items (item_id, node_id at the planning level, base_id at level - level_gap).
-- weight_q and satisfaction_q are in millionths; satisfaction_q is already weighted.
SELECT
  v,
  own_id,
  node_id,
  serendipitous,
  similar_pair,
  weight_q,
  CAST(FLOOR((CAST(weight_q * satisfaction_q AS DOUBLE) + CAST(500000 AS DOUBLE))
    / CAST(1000000 AS DOUBLE)) AS BIGINT) AS satisfaction_q
FROM (
  SELECT
    a.item_id AS v,
    ia.node_id AS own_id,
    ib.node_id AS node_id,
    ia.node_id <> ib.node_id AND ia.base_id = ib.base_id AS serendipitous,
    ia.node_id = ib.node_id AS similar_pair,
    CAST(FLOOR(CAST(1000000 AS DOUBLE) / CAST(a.set_size * b.set_size AS DOUBLE)
      + CAST(0.5 AS DOUBLE)) AS BIGINT) AS weight_q,
    b.satisfaction_q AS satisfaction_q
  FROM events a
  JOIN events b ON a.user_id = b.user_id AND b.set_no = a.set_no + 1
  JOIN items ia ON a.item_id = ia.item_id
  JOIN items ib ON b.item_id = ib.item_id
  WHERE b.timestamp - a.timestamp <= {session_gap_ms} AND a.item_id <> b.item_id
)
