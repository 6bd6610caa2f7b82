-- The user and the two databases of the server. Run by PostgreSQL's container at its first start, or by
--   CREDENTIALS_DIRECTORY=FOLDER psql --file databases.sql
-- as a user who may make databases. The password is read from the file PGPASSWORD in that folder.
\set ON_ERROR_STOP on
\set password `cat "$CREDENTIALS_DIRECTORY/PGPASSWORD"`
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth FROM PUBLIC;
