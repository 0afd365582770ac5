-- Prompts answered correctly, of all kept.
SELECT model, task, prompt_set, count(*) FILTER (pattern != 'incorrect') AS correct,
       count(*) AS prompts
FROM stages
GROUP BY ALL
