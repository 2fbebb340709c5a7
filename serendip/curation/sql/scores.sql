-- Shrunk satisfaction and support of each (v, C(n)) over its serendipitous pairs:
-- (sum + m * prior) / (n + m), the prior being the mean of all serendipitous pairs.
-- Ranked within the context item; every order is by a full key. Names come last: they are long.
-- Reads steps, items, held_out.
SELECT
  items.item_id,
  items.node_id AS own_id,
  ranked.node_id,
  support,
  satisfaction,
  held_out.item_no IS NOT NULL AS held_out,
  rank_in_item
FROM (
  SELECT
    item_no,
    node_id,
    support,
    satisfaction,
    CAST(ROW_NUMBER() OVER (PARTITION BY item_no ORDER BY satisfaction DESC, support DESC, node_id)
      AS BIGINT) AS rank_in_item
  FROM (
    SELECT
      item_no,
      node_id,
      CAST(weight_q AS DOUBLE) / CAST(1000000 AS DOUBLE) AS support,
      (CAST(satisfaction_q AS DOUBLE) + CAST({shrinkage} AS DOUBLE) * prior_q)
        / (CAST(weight_q AS DOUBLE) + CAST({shrinkage} AS DOUBLE) * CAST(1000000 AS DOUBLE))
        AS satisfaction
    FROM (
      SELECT
        item_no,
        node_id,
        CAST(SUM(weight_q) AS BIGINT) AS weight_q,
        CAST(SUM(satisfaction_q) AS BIGINT) AS satisfaction_q
      FROM steps
      WHERE kind = 2
      GROUP BY item_no, node_id
    ) AS summed
    CROSS JOIN (
      SELECT CAST(SUM(satisfaction_q) AS DOUBLE) * CAST(1000000 AS DOUBLE)
        / CAST(SUM(weight_q) AS DOUBLE) AS prior_q
      FROM steps
      WHERE kind = 2
    ) AS prior
    WHERE weight_q >= {min_support_q}
  )
) AS ranked
JOIN items ON ranked.item_no = items.item_no
LEFT JOIN held_out ON ranked.item_no = held_out.item_no
