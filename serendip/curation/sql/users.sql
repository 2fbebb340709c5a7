-- How many interactions each user has, and a short name of each: one of 4,096 buckets by a hash
-- that every engine has, and the user's number in it. ASCII(c) % 39 - 9 is the value of a
-- hexadecimal digit. Reads interactions.
SELECT
  user_id,
  events,
  bucket,
  CAST(ROW_NUMBER() OVER (PARTITION BY bucket ORDER BY user_id) AS BIGINT) AS number
FROM (
  SELECT
    user_id,
    events,
    (ASCII(SUBSTR(hash, 1, 1)) % 39 - 9) * 256 + (ASCII(SUBSTR(hash, 2, 1)) % 39 - 9) * 16
      + (ASCII(SUBSTR(hash, 3, 1)) % 39 - 9) AS bucket
  FROM (
    SELECT user_id, COUNT(*) AS events, MD5(user_id) AS hash
    FROM interactions
    GROUP BY user_id
  )
)
