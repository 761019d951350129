-- Which annotation each row has: one of its own, or one of its track.
-- In:  observations (fov, track_id, t, …)
--      annotations (annotation, fov, track_id, t): fov is NULL for a FOV that is not built, t for all of a track
-- Row: one observation.
-- Out: the columns of observations
--      annotation   of the annotation tables; NULL without one
SELECT
    observations.*,
    coalesce(own.annotation, whole.annotation) AS annotation
FROM observations
LEFT JOIN annotations AS own
    ON own.fov = observations.fov AND own.track_id = observations.track_id AND own.t = observations.t
LEFT JOIN (SELECT annotation, fov, track_id FROM annotations WHERE t IS NULL) AS whole
    ON whole.fov = observations.fov AND whole.track_id = observations.track_id
