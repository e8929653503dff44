from qvl_lab.cli import main

main()
