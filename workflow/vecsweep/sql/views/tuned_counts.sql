-- Prompts that the tuned lens was reported on, and those of them that are answered correctly.
SELECT t.model, t.task, count(DISTINCT t.prompt_id) AS prompts,
       coalesce(any_value(c.prompts), 0) AS correct
FROM tuned AS t LEFT JOIN tuned_curves AS c USING (model, task)
WHERE t.part != 'held-out'
GROUP BY ALL
