-- The three stages of every prompt (paper, section 1), from `lens`, the wide rows of stage lens.
--
-- A token is "the top" where no token has a larger logit (rank 0). Layers are judged by the stream
-- that leaves them (site resid_post):
--   argument formation    the argument is the top at one layer or more before the answer first is:
--                         argument_first and argument_last are the first and last such layer;
--   function application  function_layer, from which on the answer is the top to the end;
--   saturation            the layers from function_layer on: saturation_layers counts them.
-- pattern: incorrect (the answer is not the top at the end), argument-function (argument formation
-- came first), direct (it did not).
-- function_site, sequential blocks: ffn if the answer is not yet the top in the mid-block state of
-- function_layer, else attention. Parallel blocks have no mid-block state: each update is added to
-- the block's input alone, and the one that makes the answer the top is named; both or joint if
-- either does, or only their sum.
WITH tops AS (
    SELECT model, task, prompt_set, prompt_id, layer, site,
           argument_rank = 0 AS argument_top, answer_rank = 0 AS answer_top
    FROM lens
),
ends AS (
    SELECT model, task, prompt_set, prompt_id,
           max(layer) AS last_layer,
           min(layer) FILTER (answer_top) AS answer_first,
           coalesce(max(layer) FILTER (NOT answer_top), -1) + 1 AS candidate
    FROM tops
    WHERE site = 'resid_post'
    GROUP BY ALL
),
formation AS (
    SELECT model, task, prompt_set, prompt_id,
           min(layer) AS argument_first, max(layer) AS argument_last
    FROM tops JOIN ends USING (model, task, prompt_set, prompt_id)
    WHERE site = 'resid_post' AND argument_top AND layer < coalesce(answer_first, last_layer + 1)
    GROUP BY ALL
),
sites AS (
    SELECT model, task, prompt_set, prompt_id, layer AS function_layer,
           bool_or(answer_top) FILTER (site = 'resid_mid') AS at_mid,
           bool_or(answer_top) FILTER (site = 'attention_alone') AS by_attention,
           bool_or(answer_top) FILTER (site = 'ffn_alone') AS by_ffn
    FROM tops
    GROUP BY ALL
),
applied AS (
    SELECT *, CASE WHEN candidate <= last_layer THEN candidate END AS function_layer
    FROM ends
)
SELECT model, task, prompt_set, prompt_id,
       CASE WHEN function_layer IS NULL THEN 'incorrect'
            WHEN argument_first IS NOT NULL THEN 'argument-function'
            ELSE 'direct' END AS pattern,
       argument_first,
       argument_last,
       function_layer::SMALLINT AS function_layer,
       CASE WHEN function_layer IS NULL THEN NULL
            WHEN at_mid IS NOT NULL THEN if(at_mid, 'attention', 'ffn')
            WHEN by_attention AND by_ffn THEN 'both'
            WHEN by_ffn THEN 'ffn'
            WHEN by_attention THEN 'attention'
            ELSE 'joint' END AS function_site,
       (last_layer - function_layer + 1)::SMALLINT AS saturation_layers
FROM applied
LEFT JOIN formation USING (model, task, prompt_set, prompt_id)
LEFT JOIN sites USING (model, task, prompt_set, prompt_id, function_layer)
ORDER BY model, task, prompt_set, prompt_id
