-- How many observations were dropped, and why.
-- In:  placed (fov, reason), fovs (fov, experiment)
-- Row: one (experiment, reason) that occurs.
-- Out: experiment, reason, observations
SELECT experiment, reason, count(*) AS observations
FROM placed
JOIN fovs USING (fov)
WHERE reason IS NOT NULL
GROUP BY experiment, experiment_index, reason
ORDER BY experiment_index, reason
