-- The out-of-domain sets of each task: another task's title, or a group of its own.
SELECT DISTINCT ON (ovector_task, o.task) ovector_task AS task, o.task AS prompts_of,
       if(o.task = ovector_task, "group", title) AS name
FROM effects AS o
JOIN tasks AS t ON o.task = t.task
LEFT JOIN (SELECT DISTINCT task, "group" FROM prompts WHERE out_of_domain) AS p ON o.task = p.task
WHERE domain = 'out'
ORDER BY ovector_task, o.task, name
