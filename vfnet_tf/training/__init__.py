"""What `fit` needs: optimizer, schedules, strategies, callbacks."""
