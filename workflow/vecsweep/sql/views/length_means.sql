-- Mean reciprocal rank after, by length and task; `prompts` says over how many.
SELECT model, task, length, size, count(*) AS prompts, avg(after) AS after
FROM lengths
GROUP BY ALL
