-- Impressions of the log, of the corpus's items, and of the previous corpus's.
-- Reads traffic, corpus, previous_corpus.
SELECT
  CAST(COALESCE(SUM(traffic.impressions), 0) AS BIGINT) AS impressions,
  CAST(COALESCE(SUM(CASE WHEN corpus.item_id IS NOT NULL THEN traffic.impressions END), 0)
    AS BIGINT) AS covered,
  CAST(COALESCE(SUM(CASE WHEN previous_corpus.item_id IS NOT NULL THEN traffic.impressions END), 0)
    AS BIGINT) AS covered_by_previous,
  MAX(traffic.impressions) AS most
FROM traffic
LEFT JOIN corpus ON traffic.item_id = corpus.item_id
LEFT JOIN previous_corpus ON traffic.item_id = previous_corpus.item_id
