-- The top token of each prompt, layer and site, and whether it is the argument or the answer.
SELECT model, task, prompt_set, prompt_id, layer, site, shown(token, t.token_id) AS token,
       t.probability,
       bool_or(rank = 0) FILTER (target = 'argument') AS is_argument,
       bool_or(rank = 0) FILTER (target = 'answer') AS is_answer
FROM top_tokens AS t
JOIN lens USING (model, task, prompt_set, prompt_id, layer, site)
WHERE position = 0
GROUP BY ALL
