-- What each o-vector promotes and demotes when it is read out as if it were a state.
SELECT model, task, donor, layer, argument, answer, norm, cosine_to_mean,
       list(token ORDER BY position) FILTER (direction = 'promoted') AS promoted,
       list(token ORDER BY position) FILTER (direction = 'demoted') AS demoted
FROM (
    SELECT model, task, donor, layer, argument, answer, norm, cosine_to_mean,
           'promoted' AS direction, unnest(promoted) AS token_id,
           generate_subscripts(promoted, 1) AS position
    FROM ovectors
    UNION ALL
    SELECT model, task, donor, layer, argument, answer, norm, cosine_to_mean,
           'demoted', unnest(demoted), generate_subscripts(demoted, 1)
    FROM ovectors
) JOIN vocabularies USING (model, token_id)
GROUP BY ALL
ORDER BY model, task, donor
