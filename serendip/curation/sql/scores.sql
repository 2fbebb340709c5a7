-- Shrunk satisfaction and support of each (v, C(n)) over its serendipitous pairs:
-- (sum + m * prior) / (n + m), the prior being the mean of all serendipitous pairs.
-- Ranked within the context item; every order is by a full key.
-- Reads steps, items, held_out.
SELECT
  item_id,
  own_id,
  node_id,
  support,
  satisfaction,
  held_out,
  CAST(ROW_NUMBER() OVER (PARTITION BY item_id ORDER BY satisfaction DESC, support DESC, node_id)
    AS BIGINT) AS rank_in_item
FROM (
  SELECT
    items.item_id,
    items.node_id AS own_id,
    summed.node_id,
    CAST(weight_q AS DOUBLE) / CAST(1000000 AS DOUBLE) AS support,
    (CAST(satisfaction_q AS DOUBLE) + CAST({shrinkage} AS DOUBLE) * prior_q)
      / (CAST(weight_q AS DOUBLE) + CAST({shrinkage} AS DOUBLE) * CAST(1000000 AS DOUBLE))
      AS satisfaction,
    held_out.item_id IS NOT NULL AS held_out
  FROM (
    SELECT
      item_no,
      node_id,
      CAST(SUM(weight_q) AS BIGINT) AS weight_q,
      CAST(SUM(satisfaction_q) AS BIGINT) AS satisfaction_q
    FROM steps
    WHERE kind = 'serendipitous'
    GROUP BY item_no, node_id
  ) AS summed
  CROSS JOIN (
    SELECT CAST(SUM(satisfaction_q) AS DOUBLE) * CAST(1000000 AS DOUBLE)
      / CAST(SUM(weight_q) AS DOUBLE) AS prior_q
    FROM steps
    WHERE kind = 'serendipitous'
  ) AS prior
  JOIN items ON summed.item_no = items.item_no
  LEFT JOIN held_out ON items.item_id = held_out.item_id
  WHERE weight_q >= {min_support_q}
)
