-- Table patterns of the in-domain prompts, with the 95 % Wilson interval of each bar's first share.
SELECT * EXCLUDE (subset),
       wilson_low(argument_function, prompts) AS argument_function_low,
       wilson_high(argument_function, prompts) AS argument_function_high,
       wilson_low(by_ffn, prompts * correct) AS by_ffn_low,
       wilson_high(by_ffn, prompts * correct) AS by_ffn_high
FROM patterns
WHERE subset = 'all'
