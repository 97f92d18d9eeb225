"""Settings: what values an argument takes, which arguments a class has, and names of earlier versions."""
