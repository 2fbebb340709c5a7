-- Pairs (v, n) of consecutive interactions within the session gap, summed up as in moves. Between
-- sets of equal timestamps: from each item of a set to each of the next set's, weighted to sum to
-- one a pair of sets; none within a set. weight_q and satisfaction_q are in millionths;
-- satisfaction_q is already weighted.
-- The pair of two sets of one interaction each stands in moves.
-- Reads moves, sets, items.
SELECT
  kind,
  item_no,
  node_id,
  times * CAST(1000000 AS BIGINT) AS weight_q,
  satisfaction_q
FROM moves
WHERE kind > 0
UNION ALL
SELECT
  kind,
  item_no,
  node_id,
  weight_q,
  CAST(FLOOR((CAST(weight_q * satisfaction_q AS DOUBLE) + CAST(500000 AS DOUBLE))
    / CAST(1000000 AS DOUBLE)) AS BIGINT) AS satisfaction_q
FROM (
  SELECT
    CASE
      WHEN ia.node_id = ib.node_id THEN 1
      WHEN ia.base_id = ib.base_id THEN 2
      ELSE 3
    END AS kind,
    a.own_item_no AS item_no,
    ib.node_id AS node_id,
    CAST(FLOOR(CAST(1000000 AS DOUBLE) / CAST(sets.size * sets.next_size AS DOUBLE)
      + CAST(0.5 AS DOUBLE)) AS BIGINT) AS weight_q,
    CAST(b.own_satisfaction_q AS BIGINT) AS satisfaction_q
  FROM sets
  JOIN moves a ON a.bucket = sets.bucket AND a.moment = sets.moment
  JOIN moves b ON b.bucket = sets.bucket AND b.moment = sets.next_moment
  JOIN items ia ON a.own_item_no = ia.item_no
  JOIN items ib ON b.own_item_no = ib.item_no
  WHERE sets.next_moment - sets.moment <= {session_gap_ms}
    AND (sets.events > 1 OR sets.next_events > 1)
    AND sets.size * sets.next_size <= {max_tied_pairs}
    AND a.own_item_no <> b.own_item_no
)
