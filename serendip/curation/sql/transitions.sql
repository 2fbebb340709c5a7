-- From cluster to cluster: what the fallback ranks siblings by. Reads scores.
SELECT
  own_id,
  node_id,
  CAST(SUM(support_q) AS DOUBLE) / CAST(1000000 AS DOUBLE) AS support,
  CAST(SUM(weighted_q) AS DOUBLE) / CAST(SUM(support_q) AS DOUBLE) / CAST(1000000 AS DOUBLE)
    AS satisfaction
FROM (
  SELECT
    own_id,
    node_id,
    CAST(FLOOR(support * CAST(1000000 AS DOUBLE) + CAST(0.5 AS DOUBLE)) AS BIGINT) AS support_q,
    CAST(FLOOR(support * satisfaction * CAST(1000000 AS DOUBLE) + CAST(0.5 AS DOUBLE)) AS BIGINT)
      * CAST(1000000 AS BIGINT) AS weighted_q
  FROM scores
  WHERE NOT held_out
)
GROUP BY own_id, node_id
