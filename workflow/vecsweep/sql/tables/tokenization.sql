-- The o-vector by the number of tokens of argument and answer, and by the letters of the
-- answer's first token (paper, Appendix E); 6 stands for six letters or more.
SELECT o.model, o.ovector_task AS task, domain, argument_length, answer_length,
       least(first_token_letters, 6) AS first_token_letters,
       count(*) AS prompts,
       avg(reciprocal_rank_before) AS reciprocal_rank_before,
       avg(reciprocal_rank_after) AS reciprocal_rank_after,
       avg(top_1) AS top_1, avg(no_effect) AS no_effect
FROM outcomes AS o
JOIN prompts AS p
    ON (o.model, o.task, o.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
WHERE o.split = 'test' AND method = 'o-vector'
GROUP BY ALL
ORDER BY ALL
