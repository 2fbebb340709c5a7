-- How many interactions each user has, and a short name of each: a bucket by a hash that every
-- engine has, and the user's number in it. Reads interactions.
SELECT
  user_id,
  events,
  bucket,
  CAST(ROW_NUMBER() OVER (PARTITION BY bucket ORDER BY user_id) AS BIGINT) AS number
FROM (
  SELECT
    user_id,
    events,
    ASCII(SUBSTR(hash, 1, 1)) * 2097152 + ASCII(SUBSTR(hash, 2, 1)) * 16384
      + ASCII(SUBSTR(hash, 3, 1)) * 128 + ASCII(SUBSTR(hash, 4, 1)) AS bucket
  FROM (
    SELECT user_id, COUNT(*) AS events, MD5(user_id) AS hash
    FROM interactions
    GROUP BY user_id
  )
)
