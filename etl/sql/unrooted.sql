-- Tracks that never reach a root: in a cycle, their own parent, or descended from such a track.
-- In:  tracks (track, fov, track_id, parent_track_id), descent (track), fovs (fov, experiment, fov_name)
-- Row: one such track.
-- Out: experiment, fov_name, track_id, parent_track_id
SELECT experiment, fov_name, track_id, parent_track_id
FROM tracks
ANTI JOIN descent USING (track)
JOIN fovs USING (fov)
ORDER BY track
