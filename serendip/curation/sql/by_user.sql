-- How many interactions each user has. Reads interactions.
SELECT user_id, COUNT(*) AS events
FROM interactions
GROUP BY user_id
