-- The curated pairs: for each target cluster its best context items, held-out items left out.
-- Reads scores.
SELECT item_id, own_id, node_id, support, satisfaction, rank_in_cluster
FROM (
  SELECT
    item_id,
    own_id,
    node_id,
    support,
    satisfaction,
    CAST(ROW_NUMBER() OVER (PARTITION BY node_id ORDER BY satisfaction DESC, support DESC, item_id)
      AS BIGINT) AS rank_in_cluster
  FROM scores
  WHERE NOT held_out
)
WHERE rank_in_cluster <= {contexts_per_cluster}
