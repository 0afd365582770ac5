-- Each test prompt under the o-vector, with the tokens of its words and the letters of the
-- answer's first token; 6 stands for six or more.
SELECT o.model, o.ovector_task AS task,
       least(argument_length, 6) AS argument_length,
       least(answer_length, 6) AS answer_length,
       least(first_token_letters, 6) AS first_token_letters,
       reciprocal_rank_before AS before, reciprocal_rank_after AS after
FROM outcomes AS o
JOIN prompts AS p
    ON (o.model, o.task, o.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
WHERE o.split = 'test' AND method = 'o-vector' AND domain = 'in'
ORDER BY o.model, o.ovector_task, o.prompt_id
