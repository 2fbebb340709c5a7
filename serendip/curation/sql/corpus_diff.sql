-- Items that came into the corpus since the previous run, and items that left it, with the
-- impressions that the log has of them now; 0 is none.
-- Reads corpus, previous_corpus (item_id), traffic.
SELECT
  changed.item_id,
  changed.change,
  COALESCE(traffic.impressions, 0) AS impressions
FROM (
  SELECT
    COALESCE(corpus.item_id, previous_corpus.item_id) AS item_id,
    CASE WHEN previous_corpus.item_id IS NULL THEN 'came' ELSE 'left' END AS change
  FROM corpus
  FULL JOIN previous_corpus ON corpus.item_id = previous_corpus.item_id
  WHERE corpus.item_id IS NULL OR previous_corpus.item_id IS NULL
) AS changed
LEFT JOIN traffic ON changed.item_id = traffic.item_id
