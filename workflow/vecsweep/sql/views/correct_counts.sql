-- In-domain prompts answered correctly, of all kept.
SELECT model, task, prompt_set, count(*) FILTER (pattern != 'incorrect') AS correct,
       count(*) AS prompts
FROM stages JOIN prompts USING (model, task, prompt_set, prompt_id)
WHERE NOT out_of_domain
GROUP BY ALL
