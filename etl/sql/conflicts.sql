-- Tracks whose rows disagree on the parent.
-- In:  tracks (track, fov, track_id, parent_track_id, other_parent_track_id), fovs (fov, experiment, fov_name)
-- Row: one such track.
-- Out: experiment, fov_name, track_id, parent_track_id, other_parent_track_id
SELECT experiment, fov_name, track_id, parent_track_id, other_parent_track_id
FROM tracks
JOIN fovs USING (fov)
WHERE parent_track_id <> other_parent_track_id
ORDER BY track
