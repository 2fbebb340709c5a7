-- Satisfaction of similar against serendipitous pairs, and of the rest. Reads steps.
SELECT
  kind,
  CAST(SUM(weight_q) AS BIGINT) AS support_q,
  CAST(SUM(weight_q) AS DOUBLE) / CAST(1000000 AS DOUBLE) AS support,
  CAST(SUM(satisfaction_q) AS DOUBLE) / CAST(SUM(weight_q) AS DOUBLE) AS satisfaction
FROM (
  SELECT
    CASE WHEN similar_pair THEN 'similar' WHEN serendipitous THEN 'serendipitous' ELSE 'other' END
      AS kind,
    weight_q,
    satisfaction_q
  FROM steps
)
GROUP BY kind
ORDER BY kind
