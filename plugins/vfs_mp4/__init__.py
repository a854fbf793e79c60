"""MP4 and QuickTime: exact frames and clips out of stored video, without copying it."""
