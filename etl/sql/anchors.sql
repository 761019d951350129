-- Which observations are anchors, and which are candidates of an anchor.
-- In:  observations (observation, experiment, experiment_index, lineage_index, t)
--      tau (experiment, tau_min, tau_max): frames, both ends included; τ = 0 never counts
-- Row: one observation, in the order of observation.
-- Out: is_anchor      the lineage was seen at t + τ for a τ of the range
--      is_candidate   the lineage was seen at t - τ for a τ of the range
WITH experiments AS (
    SELECT experiment_index, any_value(experiment)::VARCHAR AS experiment
    FROM observations
    GROUP BY experiment_index
),
frames AS (
    SELECT lineage_index, t, any_value(experiment_index) AS experiment_index
    FROM observations
    GROUP BY lineage_index, t
),
flagged AS (
    SELECT
        lineage_index,
        t,
        count(*) OVER (
            PARTITION BY lineage_index ORDER BY t
            RANGE BETWEEN greatest(tau_min, 1) FOLLOWING AND tau_max FOLLOWING
        ) > 0 AS is_anchor,
        count(*) OVER (
            PARTITION BY lineage_index ORDER BY t
            RANGE BETWEEN tau_max PRECEDING AND greatest(tau_min, 1) PRECEDING
        ) > 0 AS is_candidate
    FROM frames
    JOIN experiments USING (experiment_index)
    JOIN tau USING (experiment)
)
SELECT is_anchor, is_candidate
FROM observations
JOIN flagged USING (lineage_index, t)
ORDER BY observation
