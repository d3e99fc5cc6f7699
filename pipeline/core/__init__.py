"""What everything else uses: errors, files, console, paths, versions."""
