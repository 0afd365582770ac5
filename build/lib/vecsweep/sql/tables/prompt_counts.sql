-- Prompts kept and dropped, and why.
SELECT model, task, coalesce(dropped, 'kept') AS outcome, count(DISTINCT prompt_id) AS pairs
FROM prompts
GROUP BY ALL
ORDER BY ALL
