"""How settings are typed, checked and renamed: ranges of arguments, and names of earlier versions."""
