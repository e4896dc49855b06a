Jag ser en katt.
Det regnar.
Var ligger stationen?
