-- Satisfaction of similar against serendipitous pairs, and of the rest. Reads steps.
SELECT
  CASE kind WHEN 1 THEN 'similar' WHEN 2 THEN 'serendipitous' ELSE 'other' END AS kind,
  CAST(SUM(weight_q) AS BIGINT) AS support_q,
  CAST(SUM(weight_q) AS DOUBLE) / CAST(1000000 AS DOUBLE) AS support,
  CAST(SUM(satisfaction_q) AS DOUBLE) / CAST(SUM(weight_q) AS DOUBLE) AS satisfaction
FROM steps
GROUP BY kind
