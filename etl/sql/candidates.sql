-- Which observations have a temporal candidate, and which are one.
-- In:  observations (observation, experiment_index, lineage_index, t)
--      tau (experiment_index, tau_min, tau_max): frames, both ends included, at least 1
-- Row: one observation, in the order of observation.
-- Out: has_candidate  the lineage was seen at t + τ for a τ of the range
--      is_candidate   the lineage was seen at t - τ for a τ of the range
WITH flagged AS (
    SELECT
        observation,
        count(*) OVER (
            PARTITION BY lineage_index ORDER BY t
            RANGE BETWEEN tau_min FOLLOWING AND tau_max FOLLOWING
        ) > 0 AS has_candidate,
        count(*) OVER (
            PARTITION BY lineage_index ORDER BY t
            RANGE BETWEEN tau_max PRECEDING AND tau_min PRECEDING
        ) > 0 AS is_candidate
    FROM observations
    JOIN tau USING (experiment_index)
)
SELECT has_candidate, is_candidate
FROM flagged
ORDER BY observation
