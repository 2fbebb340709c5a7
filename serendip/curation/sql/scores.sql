-- Shrunk satisfaction and support of each (v, C(n)) over its serendipitous pairs:
-- (sum + m * prior) / (n + m), the prior being the mean of all serendipitous pairs.
-- Reads steps, held_out. Ranked within the context item; every order is by a full key.
SELECT
  item_id,
  own_id,
  node_id,
  support,
  satisfaction,
  held_out,
  ROW_NUMBER() OVER (PARTITION BY item_id ORDER BY satisfaction DESC, support DESC, node_id)
    AS rank_in_item
FROM (
  SELECT
    v AS item_id,
    own_id,
    node_id,
    CAST(weight_q AS DOUBLE) / CAST(1000000 AS DOUBLE) AS support,
    (CAST(satisfaction_q AS DOUBLE) + CAST({shrinkage} AS DOUBLE) * prior_q)
      / (CAST(weight_q AS DOUBLE) + CAST({shrinkage} AS DOUBLE) * CAST(1000000 AS DOUBLE))
      AS satisfaction,
    v IN (SELECT item_id FROM held_out) AS held_out
  FROM (
    SELECT
      v,
      own_id,
      node_id,
      CAST(SUM(weight_q) AS BIGINT) AS weight_q,
      CAST(SUM(satisfaction_q) AS BIGINT) AS satisfaction_q
    FROM steps
    WHERE serendipitous
    GROUP BY v, own_id, node_id
  )
  CROSS JOIN (
    SELECT CAST(SUM(satisfaction_q) AS DOUBLE) * CAST(1000000 AS DOUBLE)
      / CAST(SUM(weight_q) AS DOUBLE) AS prior_q
    FROM steps
    WHERE serendipitous
  )
  WHERE weight_q >= {min_support_q}
)
ORDER BY item_id, rank_in_item
