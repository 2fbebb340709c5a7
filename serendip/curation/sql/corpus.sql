-- The fewest most-impressed items that cover a share of the impressions, in thousandths.
-- Reads shown (item_id: one row an impression).
SELECT item_id, impressions
FROM (
  SELECT
    item_id,
    impressions,
    SUM(impressions) OVER (
      ORDER BY impressions DESC, item_id ROWS UNBOUNDED PRECEDING
    ) AS covered,
    SUM(impressions) OVER () AS total
  FROM (SELECT item_id, COUNT(*) AS impressions FROM shown GROUP BY item_id)
)
WHERE (covered - impressions) * 1000 < {coverage_thousandths} * total
ORDER BY impressions DESC, item_id
